"""Jobs that make new model versions. Nothing is here yet: versions are made outside and deployed."""
