"""The model as a stack of blocks: its states, its readout at any depth, and how it is run in part."""
