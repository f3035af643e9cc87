"""What a model does when it is called: its traced graph, its blocks, its norms, its unused layers."""
