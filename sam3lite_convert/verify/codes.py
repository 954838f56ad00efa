"""The catalogue of codes that ``verify`` gives its findings: what each means, how it is seen, what it costs, and how it
is mended. ``sam3lite explain CODE`` prints an entry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """One kind of finding.

    name: what ``findings`` in the JSON and the terminal call it.
    title: what is wrong, in a few words; of tensors so that it can follow "differ, ".
    meaning: what is wrong, in full.
    seen: how ``verify`` tells it.
    cost: what a user of the folder gets.
    mend: what to do.
    """

    name: str
    title: str
    meaning: str
    seen: str
    cost: str
    mend: str


_AGAIN = "Convert the checkpoint again with sam3lite convert, or mend the script that wrote the folder."
_FIELD = "Correct the field in config.json; sam3lite convert --dry-run shows the sizes that the checkpoint has."

_ALL = (
    # ---- the source's numbers, arranged in another way
    Code(
        "V-TRANSPOSED",
        "stored transposed",
        "The folder holds the transpose of the matrix that the model needs. The original's pooled projection is stored "
        "as P in x @ P, a Linear as W in x @ W.T, so this one has to be transposed, and no other.",
        "The transpose of the folder's matrix equals what the conversion writes, to the bit; or the shape is reversed.",
        "A square matrix loads without a word, and everything behind it is unrelated to the original. For the pooled "
        "projection: the detector does not read it, users of the text encoder alone do.",
        "Transpose the matrix.",
    ),
    Code(
        "V-RESHAPED",
        "reordered by a reshape",
        "The folder holds the source's numbers in another order, as a reshape to the wrong shape and a transpose leave "
        "them.",
        "Undoing the reshape gives what the conversion writes, to the bit.",
        "The layer computes something unrelated to the original.",
        _AGAIN,
    ),
    Code(
        "V-QKV-ORDER",
        "q, k and v in another order",
        "The rows of a fused attention weight or bias are blocks of q, k and v. The original's order is q, k, v.",
        "The folder's blocks in another order equal the source, to the bit.",
        "Attention takes keys for queries, or values for keys: the layer's output is unrelated to the original's.",
        "Put the blocks in the order q, k, v.",
    ),
    Code(
        "V-QKV-INTERLEAVED",
        "q, k and v interleaved by head",
        "Some libraries store q, k and v head by head; the original stores all rows of q, then of k, then of v.",
        "Interleaving the source's rows for some number of heads gives the folder's rows, to the bit.",
        "The layer's output is unrelated to the original's.",
        "Reorder the rows: all of q, then all of k, then all of v.",
    ),
    Code(
        "V-QKV-UNSPLIT",
        "q, k and v not split",
        "A tensor that should hold one of q, k and v has the shape of all three.",
        "Its shape is that of the source's fused tensor.",
        "Loaders refuse the shape, or leave the layer at random values.",
        "Split the rows into three blocks: q, k, v.",
    ),
    Code(
        "V-ROW-ORDER",
        "joined in another order",
        "A tensor is made of several of the checkpoint, one row after another, and its rows are in another order: the "
        "four embeddings of points, for example, mean nothing, an object, and two corners of a box, in this order.",
        "Its rows are those that the conversion writes, in another order.",
        "Prompts mean something else: a point on the object is taken for one beside it.",
        "Put the rows in the order of the names of their sources.",
    ),
    Code(
        "V-SWAPPED",
        "swapped",
        "Two tensors hold each other's values: q and k of a layer, or the tensors of two layers.",
        "Each of them equals, to the bit, what the other should hold.",
        "Both layers compute something else; shapes agree, so no loader notices.",
        "Swap them back.",
    ),
    Code(
        "V-OTHER-TENSOR",
        "another tensor in its place",
        "The tensor holds what belongs to another name, while that one does not hold this one's values.",
        "It equals, to the bit, what the conversion writes under another name.",
        "The layer computes with another layer's weights.",
        "Correct the rule that renames the key.",
    ),
    Code(
        "V-DROPPED-IN-PLACE",
        "a tensor without counterpart in its place",
        "The tensor holds one that the model does not have, for example a projector of points where that of boxes "
        "belongs. Two source tensors were written to one name, and the later one won.",
        "It equals, to the bit, a source tensor that a conversion drops.",
        "The layer computes with weights that were trained for something else.",
        "Let the rename fail if two sources have one target, and drop the one without a counterpart.",
    ),
    Code(
        "V-CLASS-ROW",
        "class position not removed rightly",
        "The ViT's position table starts with a class position that the model does not have. It was kept, or the last "
        "row was removed in its place.",
        "The shape is the source's, or the rows are the source's first ones.",
        "Every position is off by one, or loaders refuse the shape.",
        "Remove the first row.",
    ),
    Code(
        "V-ROWS",
        "other rows of the text position table",
        "The text position table has more rows than the model is called with, or only one. The original reads the "
        "first rows as they are; the stock call stretches or squeezes a table whose length is not that of the call.",
        "The number of rows, and whether the rows are the source's, a bilinear stretch of them, or others.",
        "Positions that the model was not trained with: all text features change.",
        "Keep the source's first rows: sam3lite convert --context N.",
    ),
    # ---- other values
    Code(
        "V-HALF-PRECISION",
        "went through half precision",
        "The tensors were rounded to float16 or bfloat16 and stored as float32 again.",
        "Rounding the source and widening it again gives the folder's values, to the bit.",
        "Text features change by about 1e-3 (float16) or 1e-2 (bfloat16), at twice the size of a half-precision file.",
        "Convert from the float32 checkpoint, without --dtype.",
    ),
    Code(
        "V-SCALED",
        "multiplied by a constant",
        "The tensor is the source times one factor, for example the square root of the width that some models multiply "
        "embeddings with. The original does not scale.",
        "The ratio of all values is the same number.",
        "Everything behind the tensor changes.",
        "Divide by the factor, or take the scaling out of the script.",
    ),
    Code(
        "V-CONSTANT",
        "one value everywhere",
        "All elements have one value: the tensor was never filled, or was reset to its initial value.",
        "All elements are equal, and the source's are not.",
        "The layer does nothing, or passes its input on.",
        _AGAIN,
    ),
    Code(
        "V-NOT-FINITE",
        "NaN or infinity where the source has numbers",
        "The tensor holds NaN or infinite values that the source does not have.",
        "Counted, beside the source's own.",
        "NaN spreads: most outputs become NaN.",
        "Look for an overflow in half precision or for memory that was never filled, then convert again.",
    ),
    Code(
        "V-ONE-BIT",
        "by a single bit",
        "One bit of one element differs: damage of a file, of memory or of a disk, not a fault of a conversion.",
        "The exclusive or with the source has one bit.",
        "From nothing to everything: a bit of the exponent makes a value huge.",
        "Copy or download the folder again, and check memory and disk.",
    ),
    Code(
        "V-FINE-TUNED",
        "like a fine-tune",
        "Most tensors of a component differ from the source in most elements, and are correlated with it: the "
        "component was trained further, averaged (EMA) or merged with another.",
        "At least half of the elements of several tensors differ, with a correlation with the source of 0.8 or more.",
        "This is another model than the checkpoint; whether a better one, weights cannot tell.",
        "Verify the folder with the checkpoint that it was really converted from.",
    ),
    Code(
        "V-UNRELATED",
        "unrelated to the source",
        "Values have nothing to do with the source's: another training, or random values that a loader leaves where "
        "it finds no tensor.",
        "At least half of the elements differ, and their correlation with the source is below 0.3.",
        "The component does not do what the checkpoint's does.",
        "Verify with the right checkpoint; if it is, look for names that the loader did not find (V-MISSING).",
    ),
    Code(
        "V-FILLED",
        "filled with other values than zeros",
        "The model has a level of the neck that the checkpoint lacks. A conversion fills it with zeros; this folder "
        "holds something else there.",
        "The tensors of that level are compared with zeros.",
        "Nothing: the model computes the level and throws it away. The folder is its source all the same.",
        "Nothing has to be done; sam3lite convert writes zeros.",
    ),
    Code(
        "V-OTHER-VALUES",
        "other values",
        "Values differ from the source, and no known cause gives just these values.",
        "Compared to the bit; the message says how many elements differ, by how much, and where the first one is.",
        "Depends on the size of the difference; sam3lite parity shows what it does to the text features.",
        _AGAIN,
    ),
    Code(
        "V-CAST-OVERFLOW",
        "made infinite by the cast",
        "Values of the source are out of range for the folder's dtype, and became infinite or NaN.",
        "The source's finite values, cast to the folder's dtype, are not finite.",
        "Infinite weights give infinite or NaN outputs. sam3lite convert refuses such a cast.",
        "Use bfloat16, which has the range of float32. If it is meant: convert --allow-overflow states it.",
    ),
    # ---- names, shapes, dtypes
    Code(
        "V-MISSING",
        "missing",
        "The model has a tensor that the folder does not hold.",
        "The names that the conversion writes are compared with those of the folder.",
        "transformers fills it with random values and prints a warning; other loaders stop.",
        "Correct the rule that renames the key, or add the file that holds the tensor.",
    ),
    Code(
        "V-UNEXPECTED",
        "unexpected: the model has no such tensor",
        "The folder holds a tensor under a name that the model does not have.",
        "The names of the folder are compared with those that the conversion writes.",
        "Loaders ignore it; if a tensor is missing too, this may be it under a wrong name.",
        "Correct its name, or remove it.",
    ),
    Code(
        "V-SHAPE",
        "of another shape",
        "The tensor has a shape that the model does not have there.",
        "The shape in the file's header is compared with the one that the conversion writes.",
        "Loaders stop, or leave the tensor at random values.",
        _AGAIN,
    ),
    Code(
        "V-DTYPE",
        "of another dtype than the rest",
        "The tensor has another dtype than the conversion gives it.",
        "The dtype in the file's header.",
        "Loaders cast it without a word; what a narrower dtype rounded off does not come back.",
        "Store all floating tensors in one dtype.",
    ),
    # ---- config.json
    Code(
        "V-CONFIG-MISSING",
        "config.json is missing",
        "The folder has no config.json.",
        "There is no such file.",
        "No library knows what the weights are.",
        "Take config.json from a conversion of the same checkpoint.",
    ),
    Code(
        "V-CONFIG-CLASS",
        "config.json names another model",
        "model_type or architectures of config.json names another model than the one that these tensors belong to.",
        "Compared with the class that loads the layout.",
        "The tensors of the other class are randomly initialised: transformers finds none of them in the folder, "
        "prints a warning, and goes on.",
        "Write the config.json of the class that the tensors belong to.",
    ),
    Code(
        "V-CONFIG-EPS",
        "a LayerNorm has another eps",
        "The original's LayerNorms have an eps of 1e-5. The library's default for the ViT is 1e-6, and takes effect "
        "where config.json leaves the field out.",
        "layer_norm_eps of vision_config.backbone_config or of text_config; if left out, the library's default.",
        "The first LayerNorm of the ViT differs by up to 7e-4; where activations are small, far more.",
        "Set the field to 1e-05.",
    ),
    Code(
        "V-CONFIG-DTYPE",
        "config.json states another dtype",
        "dtype (or torch_dtype) of config.json is not the dtype of the weights.",
        "Compared with the dtype of the tensors.",
        "transformers casts the weights to it while it loads them.",
        "Set the field to the dtype of the weights.",
    ),
    Code(
        "V-CONFIG-ROPE",
        "config.json changes the rotary embedding",
        "The original's ViT has an axial rotary embedding with base 10000.",
        "rope_parameters, rope_scaling (its old name), rope_theta and head_dim of vision_config.backbone_config.",
        "Attention of every ViT block changes.",
        "Remove the field: the library's default is the original's.",
    ),
    Code(
        "V-CONFIG-FIELD",
        "a field of config.json does not fit the weights",
        "A field has a value that the weights contradict, or that changes what is computed from them. A field that is "
        "left out has the value that the reader gives it: the library's default, or that of PackedTextModel.",
        "Compared with the sizes of the source's tensors and with the original's constants.",
        "Loaders stop or leave tensors random where a size is wrong; where a constant is wrong (heads, activation, "
        "window), the model loads and computes something else.",
        _FIELD,
    ),
    Code(
        "V-CONFIG-TYPE",
        "a field of config.json has a value of another type",
        "A field holds a value of a type that its reader does not accept: text for a number, true for 1, null, NaN, or "
        "a list for a number.",
        "Compared with the types of the reader's configuration.",
        "The reader stops while it loads; older ones compute something else.",
        _FIELD,
    ),
    # ---- the other files
    Code(
        "V-PROCESSOR",
        "the image processor is another",
        "A file of the processor does not prepare pictures as the original does: mean and deviation 0.5, values scaled "
        "by 1/255, resized bilinearly to the model's size, without keeping the aspect ratio.",
        "The fields of preprocessor_config.json and processor_config.json; with a receipt, also the files' hashes.",
        "The model sees other pixels than it was trained with.",
        "Take the file from a conversion of the same checkpoint.",
    ),
    Code(
        "V-TOKENIZER",
        "the tokenizer is another",
        "A file of the tokenizer gives other ids than the original's: other vocabulary or merges, another padding id "
        "(the original's is 0), another length than the model is called with.",
        "The vocabulary and settings in the tokenizer's files; with a receipt, also the files' hashes.",
        "Prompts become other ids; the text features are those of other words.",
        "sam3lite convert --tokenizer writes the right files into a converted folder.",
    ),
    Code(
        "V-LICENCE",
        "a licence file is missing or another",
        "A licence file that the conversion took from the source's repository is not in the folder any more, or was "
        "edited.",
        "With a receipt alone, which lists the file's hash.",
        "Loaders don't read it. Who gets the folder does not get the licence that the weights came with.",
        "If the file is missing, sam3lite convert adds it again; if it was edited, delete it first.",
    ),
    Code(
        "V-ROTARY",
        "the source's rotary table is not what the target computes",
        "The checkpoint stores the ViT's rotary tables (freqs_cis). A conversion drops them, as the target computes "
        "them. Here the stored table is another.",
        "The table is computed from the original's formula and compared; 1e-4 is allowed for rounding in float32, and "
        "what a narrower dtype rounds off. Random tables, which only generated checkpoints have, and tables in a form "
        "that can't be compared are said and do not change the verdict.",
        "The original loads and uses the stored table, the converted model the computed one: image features differ.",
        "Find out where the table comes from. If the computed one is right, store it in the checkpoint.",
    ),
    Code(
        "V-RECEIPT",
        "conversion.json says something else",
        "The receipt does not describe this conversion of this source.",
        "Its fields are compared with those that the conversion would write.",
        "Tools that trust the receipt are misled.",
        "Convert again, or delete a receipt that belongs to another folder.",
    ),
    Code(
        "V-FINGERPRINT",
        "fingerprint.json is not that of this checkpoint",
        "The numbers in fingerprint.json are not what the original computes with this checkpoint's weights.",
        "It is made again from the checkpoint and compared: ids, positions, and every value within its floor.",
        "Ports that are judged by it are judged wrongly: right ones fail, or wrong ones pass.",
        "Make it again: sam3lite record CHECKPOINT --fingerprint --output fingerprint.json.",
    ),
    Code(
        "V-GRAPH-FILE",
        "not a graph that is safe to run",
        "The file is no ONNX model, or one that a runtime should not be given: tensors outside of the folder or past "
        "the end of their file, values that are read before they are made, operators of somebody's own, graphs nested "
        "without end, more than 64 MB.",
        "It is read with limits, and what it says of each tensor's place is looked up, before anything runs it.",
        "A runtime crashes, takes all memory, or reads files that the graph's author chose.",
        "Delete it, and write it again: sam3lite export onnx DIR CHECKPOINT.",
    ),
    Code(
        "V-GRAPH-WEIGHTS",
        "a graph over other weights",
        "The graph states the SHA-256 of the tensor files that it belongs to, and here are others; or one of its "
        "tensors is not the tensor of the folder that has its name.",
        "The hashes in its metadata are compared with those of the files, and the place of each tensor with the index "
        "of the file.",
        "It runs, and computes with bytes that are not the ones that were proven.",
        "Put it back beside its weights, or write it again: sam3lite export onnx DIR CHECKPOINT.",
    ),
    Code(
        "V-GRAPH",
        "not the graph of this folder",
        "The graph is not the one that this version writes for the folder: a node, a constant, an input or output, or "
        "what it says of itself differs.",
        "The graph is made again from the receipt and the tensors, and compared node by node.",
        "It computes something else than the original, or is called in another way than it says.",
        "Write it again: sam3lite export onnx DIR CHECKPOINT. A graph of your own is judged by sam3lite parity "
        "--candidate onnx, in a copy of the folder.",
    ),
    Code(
        "V-GRAPH-VERSION",
        "a graph of another version",
        "Another version of this tool wrote the graph, and this one writes a different one. Nothing tells here whether "
        "the other is right.",
        "The version in its metadata is another than this one's, and the graphs differ.",
        "Perhaps nothing; it is not proven.",
        "Write it again with this version: sam3lite export onnx DIR CHECKPOINT. Or verify with the version that wrote "
        "it.",
    ),
    Code(
        "V-NOT-TAKEN",
        "tensors lie in a file that the reader passes over",
        "A folder can hold several files of weights, and its reader takes one of them: the one that "
        "transformers_weights of config.json names, else model.safetensors, else the shards of its index, else "
        "pytorch_model.bin.",
        "The files are listed in the order in which the reader looks for them.",
        "The tensors of the other files are not loaded, whatever they hold.",
        "Keep one set of weights: model.safetensors, or shards with their index.",
    ),
    Code(
        "V-INDEX",
        "the index and the shards do not agree",
        "model.safetensors.index.json names a shard that is missing, or says of a tensor that it lies in another one.",
        "The index is compared with what the shards hold.",
        "Loaders stop, or leave tensors at random values.",
        "Write the index again; sam3lite convert does.",
    ),
    Code(
        "V-TWICE",
        "two files hold one tensor",
        "Two of the files that the reader takes hold a tensor of the same name.",
        "The keys of all files that are taken are compared.",
        "Which of the two is loaded depends on the order of the files.",
        "Remove the tensor from one of them.",
    ),
    Code(
        "V-WEIGHTS",
        "the file of weights that config.json names cannot be taken",
        "transformers_weights names a file that is not there, or that the reader does not take.",
        "The field is read as the reader reads it.",
        "Loading stops.",
        "Remove transformers_weights from config.json, or correct it.",
    ),
    Code(
        "V-FORMAT",
        "the content of a file is not what its name says",
        "A file of weights has another format than its name says, so that the reader does not open it.",
        "The first bytes of the file.",
        "Loading stops.",
        "Save the tensors in the format that the name says: sam3lite convert writes safetensors.",
    ),
    Code(
        "V-WRAPPED",
        "the tensors lie under an entry of the file",
        "The .bin file holds a dict that holds the tensors, such as state_dict. The reader looks for tensors in the "
        "outermost dict.",
        "The structure of the file.",
        "No tensor is found, and all of them are left at random values.",
        "Save the inner dict.",
    ),
    Code(
        "V-PREFIX",
        "all keys share a prefix that the reader does not take off",
        "A wrapper around the model, such as torch.compile or DataParallel, has put its name in front of every key. "
        "The other checks are made on the keys without it.",
        "All keys begin with it, and without it they are those of a layout.",
        "No tensor is found under its name, and all of them are left at random values.",
        "Take the prefix off before saving.",
    ),
    Code(
        "V-DISTRIBUTED",
        "a file makes transformers read a distributed checkpoint",
        "A file of the folder has a name by which transformers takes the folder for a distributed checkpoint.",
        "The names of the files.",
        "Other weights are loaded than those that were compared, or loading stops.",
        "Remove the file.",
    ),
    Code(
        "V-ADAPTER",
        "a file makes transformers put an adapter into the model",
        "adapter_config.json makes from_pretrained load an adapter on top of the weights.",
        "The names of the files.",
        "The model computes with the adapter what the original computes without.",
        "Remove adapter_config.json, or merge the adapter on purpose and say so.",
    ),
)  # fmt: skip
CODES = {code.name: code for code in _ALL}
