"""What a run is judged by: metrics over answers, and how sure one can be of them."""
