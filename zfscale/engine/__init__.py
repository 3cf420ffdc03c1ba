"""A resolved job, carried out: plan, driver, worker, images of a task, events. Knows no Ray."""
