"""Dynamic axes: partitions that run with other sizes than the example's.

A model is captured at several sizes, every pass runs on each of these programs, and the results are made one: where
they differ in an integer, it becomes an expression of the sizes of the dynamic axes. What differs in anything else is
refused. So no pass knows of sizes that vary, and none can leave a size of the example in what is emitted.
"""
