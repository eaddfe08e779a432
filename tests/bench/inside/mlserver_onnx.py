"""A model of MLServer: the bare runtime on one ONNX file, as its documentation has one write it."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnxruntime import InferenceSession, SessionOptions


class OnnxModel(MLModel):  # type: ignore[misc]
    """Feeds the session by name; ``extra`` of its parameters has the number of threads."""

    async def load(self) -> bool:
        options = SessionOptions()
        options.intra_op_num_threads = self.settings.parameters.extra["threads"]
        self._session = InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        outputs = zip(self._names, self._session.run(self._names, feeds), strict=True)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(name, array) for name, array in outputs]
        )
