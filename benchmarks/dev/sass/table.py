"""Simulate each kernel that dump.py kept:  python table.py [dtype] [h200|h100] [workload,...]"""
import os, sys
from dataclasses import replace
from dump import *
from lc_triton.simulator import simulate, constants_of
def constants(dev="h200"):
    """L2 (bytes a second) and TAGS in the environment are the two sensitivities."""
    c=constants_of(by_name(dev))
    return replace(c,l2_rate=float(os.environ.get("L2",c.l2_rate)),tag_cycles=float(os.environ.get("TAGS",c.tag_cycles)))
def use_of(a): u=a.use; return dict(issue=u.issue,tensor=u.tensor,lsu=u.load_store,l2=u.l2,dram=u.memory,alu=u.alu,udp=u.uniform)
def bound(a):
    u=use_of(a); k=max(("issue","tensor","lsu","l2","dram"),key=lambda q:u[q]); return k if u[k]>0.6 else f"latency({k})"
def short(c):
    return f"{c.rows}x{c.cols}x{c.block_f} {c.block_b}x{c.block_k}{'' if c.dot else ' nodot'}{' sw' if c.swap else ''}{f' sp{c.split}' if c.split>1 else ''}{f' st{c.stream}' if c.stream>1 else ''} w{c.num_warps}s{c.num_stages}"
def floor_us(task, dev="h200"): return 1e6*model.roofline(replace(task,precision="tf32"),by_name(dev))
def rows(dtype="bfloat16",dev="h200",names=None):
    """(task, workload, config, disassembly, simulation, floor) of each row."""
    for n,wl in W.items():
        if names and n not in names: continue
        for b in wl.batches:
            for f in("forward","input_grad","weight_grad"):
                if not (OUT/(key_of(n,b,dtype,f)+".json")).exists(): continue
                task,config,c=dump(n,b,dtype,f)
                yield task,n,config,c,simulate(task,config,c,constants(dev)),floor_us(task,dev)
if __name__=="__main__":
    dtype=sys.argv[1] if len(sys.argv)>1 else "bfloat16"; dev=sys.argv[2] if len(sys.argv)>2 else "h200"
    names=sys.argv[3].split(",") if len(sys.argv)>3 else None
    print(f"{'workload':22s}{'batch':>5s} {'face':12s}{'config':32s}{'regs':>4s}{'res':>4s}{'/SM':>5s}{'loop':>5s}{'trips':>6s} | {'sim us':>8s}{'model':>8s}{'floor':>8s}{'%':>5s} | issue tensor lsu  l2  dram  bound")
    step={}
    for task,n,config,c,a,fl in rows(dtype,dev,names):
        u=use_of(a); m=a.code.main
        print(f"{n:22s}{task.batch:5d} {task.pass_name:12s}{short(config):32s}{c.registers:4d}{a.resident:4d}{a.per_multiprocessor:5d}{m[1]-m[0]+1 if m else 0:5d}{a.code.iterations:6d} | {a.microseconds:8.1f}{1e6*model.predict(task,DEV,config):8.1f}{fl:8.1f}{100*fl/a.microseconds:5.0f} | {u['issue']:.2f} {u['tensor']:.2f} {u['lsu']:.2f} {u['l2']:.2f} {u['dram']:.2f}  {bound(a)}",flush=True)
        s=step.setdefault((n,task.batch),[0,0,0,0,task]); s[0]+=a.microseconds; s[1]+=fl
        if task.pass_name=="forward": s[2]=a.microseconds; s[3]=fl
    print("\nstep sums (forward + input gradient + weight gradient, kernels only)")
    for (n,b),(t,f,ft,ff,task) in step.items():
        print(f"{n:22s}{b:5d} forward {ft:8.1f} us = {100*ff/ft:3.0f}% of floor; step {t:8.1f} us = {100*f/t:3.0f}% of {f:.1f}; weights {task.geo.weight_numel*task.weight_itemsize/1e6:.0f} MB")
