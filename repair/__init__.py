"""Jobs that make new model versions. Empty for now: see the changelog for what comes."""
