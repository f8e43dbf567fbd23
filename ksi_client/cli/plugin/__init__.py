"""`ksi plugin`: what authors of plugins and those who use them work with."""
