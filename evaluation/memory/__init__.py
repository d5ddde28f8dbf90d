"""Memory of a run: by component and by phase, predicted from its settings and measured."""
