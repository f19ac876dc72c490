import grpc
import numpy as np
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub


async def test_it(inference):
    stub = GRPCInferenceServiceStub(inference.channel)
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    images=np.zeros((2,4,4,3),np.uint8); images[0,...,0]=255
    r=pb.ModelInferRequest(model_name="tiny", raw_input_contents=[images.tobytes()])
    r.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    print(await stub.ModelInfer(r))
