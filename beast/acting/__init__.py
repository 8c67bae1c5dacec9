"""Who chooses actions: models by name, policies, the actors of both beasts, and games played with them."""
