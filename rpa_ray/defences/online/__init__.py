"""Online defences: each constrains every learner step of an attack."""
