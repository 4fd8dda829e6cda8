"""Read pickled files without running any of them: `files` finds the pickles, `machine` follows their instructions.

`pickle.load` imports whatever a file names and calls it. Here a name is only text. What the few names mean that rebuild
tensors, arrays and containers is written in `calls`; anything else becomes a `PickledObject` that says what the file
asked for, so that the tensors inside of a pickled network can be read although its classes are not installed.

Bounds: the number of instructions and the work they cause, integers, nesting. Texts and bytes are as long as what the
file holds of them, large ones are views of it, and references stay references: nothing is expanded.
"""
