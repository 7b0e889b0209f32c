// Not written yet: answers like a library without CUDA.
#include "attend/cuda_absent.cpp"
