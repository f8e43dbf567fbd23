"""What tests of the running daemon share."""
