"""Demonstrations: each puts one kind of trouble on a running Penstock and says whether it kept its bound."""
