"""Hello: a plugin of KSI."""
