"""Parts of a visit to a GPU; `bench.gpu` is the queue that runs them."""
