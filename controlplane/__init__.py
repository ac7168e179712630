"""The control plane: know where a run will end, notice that it goes bad, act within written limits, prove it helped."""
