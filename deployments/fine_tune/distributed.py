"""Training by several workers, through Ray Train. Imported only where a job asks for more than one."""
