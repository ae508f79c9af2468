"""The inference endpoints: Open Inference Protocol over HTTP and gRPC, and `/v1`.

A request comes in at `server.py` (sockets), is decoded at `http.py` or `grpc.py` (the two faces) by `codec.py` (JSON
and binary tensors) or `protocol.py` (protobuf, described in `openinference.proto`), and is answered by `engine.py`.

messages.py     the records between the faces and the engine
engine.py       analyse, plan, dispatch
choosing.py     which of the plans serves whom
rule_routes.py  what users pin or exclude
codec.py        tensors and parameters over HTTP, both directions, for servers and clients
protocol.py     the same over gRPC
connection.py   one HTTP connection: limits against slow clients, and the way onto the express
express.py      the wholly ordinary request, from bytes to bytes
http.py         the raw ASGI application: infer routes here, the rest to FastAPI
rest.py         FastAPI: health, metadata, `/v1`, the OpenAPI document
schemas.py      the JSON of `/v1`
feedback.py     the desk that takes feedback and finds outcomes
uploads.py      feedback in files, also damaged ones
grpc.py         the gRPC service
metadata.py     goals and extensions as the protocol shows models
rollouts.py     which version serves whom, and what both did
rollout_routes.py, rollout_schemas.py   `/v1/rollouts`
notes.py        what becomes of requests, taken down for groups of them
recorder.py     brings that to the journal in the background
spool.py        what waits for the journal, on disk
limits.py       what one client may take from the others
server.py       the listening sockets
app.py          all of it as a Serve deployment
"""
