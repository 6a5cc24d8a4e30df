"""Turns a model that comes in another form into a directory in Hugging Face layout. Knows no torch and no Ray."""
