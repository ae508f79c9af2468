"""The inference endpoints: Open Inference Protocol over HTTP and gRPC, and `/v1`."""
