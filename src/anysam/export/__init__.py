"""Models for other runtimes: `decoder` makes an ONNX file of a decoder and certifies it. Imports onnx on use only."""
