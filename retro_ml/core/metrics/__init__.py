"""Events of a run and the bus that carries them; standard library only."""
