from tests.emulator.check import *
import lc_triton; print(lc_triton.__file__)
c=Case("hit",(8,8),24,64,5,padding=2,batch=64)
for arch,dev in ((90,"h100"),(80,"a100")):
    cfg=choose(Task("weight_grad",c.geometry,64 if arch==80 else 256,"bfloat16","float32"),DEVICES[dev])
    r=execute(Job("hit",c,*DTYPES["bf16/fp32"],arch,(None,None,cfg),most=12))
    print(arch,describe(cfg),{k:(a,[str(x)[:120] for x in b][:2],len(b)) for k,(a,b) in r.by_kernel.items()},flush=True)
