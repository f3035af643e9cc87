"""From the loaded model to its float graph, the only room of export that knows torch."""
