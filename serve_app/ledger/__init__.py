"""What requests cost and what is reserved and settled for them: pure rules. Knows no storage, no HTTP."""
