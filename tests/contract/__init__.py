"""The OpenAPI document of each daemon held against what it does, by a fuzzer that reads it."""
