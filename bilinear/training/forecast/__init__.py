"""How long training will take, from rates measured with the backend that trains."""
