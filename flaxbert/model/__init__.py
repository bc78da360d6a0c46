"""Token rows -> hidden states: BERT as Flax NNX modules. JAX and Flax only, no files, no flags."""
