"""A model of a run among very many devices, fitted to measured runs (`unweft plan`, docs/plan.md)."""
