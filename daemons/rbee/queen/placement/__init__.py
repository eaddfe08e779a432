"""Where a model runs that no worker serves yet: facts of the nodes, a pure decision, and the starts that follow."""
