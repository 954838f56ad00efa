"""The whole detector of both sides, compared stage by stage."""
