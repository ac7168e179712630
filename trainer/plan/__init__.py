"""`scalerl plan`: what a recipe needs and costs, by calculation alone. Nothing here measures, trains or needs a GPU.

    config.json --shape--> parameters, bytes, FLOPs      per token
    recipe      --work---> tokens and FLOPs              per step
    GPU, split  --memory-> bytes per GPU      --speed--> seconds per step, a range
                                     |
                                  estimate --report--> table or JSON

Everything up to `estimate` is pure. A number is either exact (counts, bytes of state) or follows from a named assumption
with a low and a high value (assumptions.py), and the report says which.
"""
