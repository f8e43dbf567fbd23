"""The wire types, one module per namespace."""
