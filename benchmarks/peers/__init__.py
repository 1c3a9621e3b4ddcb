"""The clients that are compared: one file each, written as its own documentation recommends."""
