"""The Open Inference Protocol: messages and service generated from the .proto file beside this one (`make protos`)."""
