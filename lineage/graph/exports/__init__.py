"""The lineage in the words of others. Packages that only some need are imported where they are used.

rows.py         the lineage as a property graph: nodes, relationships, and the statements that merge them
cypher.py       ad-hoc Cypher on a copy that is rebuilt when the lineage has changed (extra `cypher`)
statements.py   whether a Cypher statement only reads
neo4j.py        to a Neo4j server (extra `neo4j`)
openlineage.py  as OpenLineage events (extra `openlineage`)
cyclonedx.py    as a CycloneDX bill of materials for machine learning
documents.py    all of these that are documents, by the name of the format
from_mlflow.py  versions, and what is known of their parents, from an MLflow registry
"""
