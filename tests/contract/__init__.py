"""The queen's OpenAPI document held against what she does, by a fuzzer that reads it."""
