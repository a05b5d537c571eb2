"""How long training will take, from rates measured on the backend that trains."""
