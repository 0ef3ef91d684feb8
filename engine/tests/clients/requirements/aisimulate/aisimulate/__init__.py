"""Nothing. The load model of Dynamo's planner is in the real package; its frontend runs without."""
