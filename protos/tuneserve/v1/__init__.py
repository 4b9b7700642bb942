"""The public API: messages and services generated from the .proto files beside this one (`make protos`)."""
