"""Growth: new layers and new neurons that do not change a model's answers until they have learned."""
