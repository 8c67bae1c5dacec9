"""Acting: models by name, policies, the actors of all trainers, and games played with them."""
