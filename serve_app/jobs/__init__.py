"""The life of a fine-tuning job, as pure values and rules: no clock, no SQL, no HTTP, no training library."""
