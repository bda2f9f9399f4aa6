/* The gate: llama.cpp's evaluation callback, in C so that it costs decoding nothing.
 *
 * llama.cpp calls it for every node of the compute graph, first with ask=true. While the gate is armed it asks to stop
 * after the nodes named "l_out-<layer>", that is, at the end of each layer; when such a node has been computed (ask=false)
 * it blocks until the memory of all layers is in place that are read before the next such node: by default that of the
 * next layer, or what `preread_gate_order` was told. Disarmed, it answers false at once and the graph runs in one piece.
 * A Python callback in this place costs about 0.5 ms a token; this one cannot be measured.
 *
 * Where only the first layers are wanted, it ends the evaluation behind these: llama.cpp takes that for success, and has
 * written their K and V. It also shows which cells a batch is written to: nodes of one operation that write to known
 * tensors are handed to a function before they are computed.
 *
 * Nothing of llama.cpp or Python is linked or included (a machine may lack Python.h): the one function needed,
 * ggml_get_name, is passed in as a pointer, and ctypes calls what is exported here. Where a tensor has its operation and
 * what it writes to, Python says, which knows the struct.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef const char *(*name_of)(const void *tensor);
typedef bool (*observer)(void *tensor, bool ask);
typedef void (*preparer)(void *tensor, void *with);
typedef void (*noter)(void *tensor);

enum { MOST_TARGETS = 4 };

struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    name_of name;
    observer observe; /* sees every node instead of the gate, while set: how the cache tensors are found */
    preparer prepare; /* is given every node before it is computed, while set: how attention.c takes its own */
    void *with;
    noter note; /* is given nodes that write to one of the targets before they are computed, while set */
    size_t operation_at, target_at; /* of a tensor, in bytes */
    int operation;
    const void *targets[MOST_TARGETS];
    bool armed;
    bool cancelled;
    int open;    /* the memory of layers 0 .. open-1 is in place */
    int last;    /* behind so many layers the evaluation ends; 0: at its end */
    int waiting; /* the layer whose memory the engine waits for, -1 when it does not wait */
    char end[64]; /* what the last node of a layer is named, before its number */
    int *needed;  /* behind so many layers (0 .. count-1), of how many layers the memory has to be in place */
    int count;
};

/* How many layers have ended with the node of this name, or -1. Views of that node have longer names. */
static int layers_until(const struct gate *gate, const char *name) {
    size_t length = strlen(gate->end);
    if (strncmp(name, gate->end, length) != 0) return -1;
    char *rest;
    long layer = strtol(name + length, &rest, 10);
    return *rest || rest == name + length ? -1 : (int)layer + 1;
}

struct gate *preread_gate_new(name_of name) {
    struct gate *gate = calloc(1, sizeof *gate);
    if (!gate) return NULL;
    pthread_mutex_init(&gate->mutex, NULL);
    pthread_cond_init(&gate->changed, NULL);
    gate->name = name;
    gate->waiting = -1;
    strcpy(gate->end, "l_out-");
    return gate;
}

void preread_gate_free(struct gate *gate) {
    if (!gate) return;
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->mutex);
    free(gate->needed);
    free(gate);
}

/* What is known of the model's graphs: the name of a layer's last node before its number, and `needed` (above), which is
 * copied. False when memory is wanting. Before the first graph that waits. */
bool preread_gate_order(struct gate *gate, const char *end, const int *needed, int count) {
    int *copy = malloc(count * sizeof *copy);
    if (!copy || strlen(end) >= sizeof gate->end) {
        free(copy);
        return false;
    }
    memcpy(copy, needed, count * sizeof *copy);
    free(gate->needed);
    gate->needed = copy;
    gate->count = count;
    strcpy(gate->end, end);
    return true;
}

/* Block until what is read next, behind `ended` layers, is in place; false when cancelled. */
static bool wait_for(struct gate *gate, int ended) {
    int needed = ended < gate->count ? gate->needed[ended] : ended + 1;
    pthread_mutex_lock(&gate->mutex);
    while (gate->armed && !gate->cancelled && gate->open < needed) {
        gate->waiting = needed - 1;
        pthread_cond_wait(&gate->changed, &gate->mutex);
    }
    gate->waiting = -1;
    bool go_on = !gate->cancelled;
    pthread_mutex_unlock(&gate->mutex);
    return go_on;
}

/* Whether a node writes to one of the targets. */
static bool is_noted(const struct gate *gate, const char *tensor) {
    int operation;
    const void *target;
    memcpy(&operation, tensor + gate->operation_at, sizeof operation);
    if (operation != gate->operation) return false;
    memcpy(&target, tensor + gate->target_at, sizeof target);
    for (int i = 0; i < MOST_TARGETS; i++)
        if (target && target == gate->targets[i]) return true;
    return false;
}

/* The callback itself: ggml_backend_sched_eval_callback. */
bool preread_gate_eval(void *tensor, bool ask, void *user_data) {
    struct gate *gate = user_data;
    if (ask && gate->prepare) gate->prepare(tensor, gate->with);
    if (ask && gate->note && is_noted(gate, tensor)) gate->note(tensor);
    if (gate->observe) return gate->observe(tensor, ask);
    if (!gate->armed) return false;
    int ended = layers_until(gate, gate->name(tensor));
    if (ask) return ended > 0;
    return (!gate->last || ended < gate->last) && wait_for(gate, ended);
}

/* Called before the graph runs, with 0, for what is read before any layer ends. */
bool preread_gate_pass(struct gate *gate, int ended) { return wait_for(gate, ended); }

void preread_gate_observe(struct gate *gate, observer observe) { gate->observe = observe; }

void preread_gate_prepare(struct gate *gate, preparer prepare, void *with) {
    gate->with = with;
    gate->prepare = prepare;
}

/* Where nodes have their operation and what they write to, which operation it is, and which targets there are. */
void preread_gate_learn(struct gate *gate, size_t operation_at, size_t target_at, int operation, const void **targets,
                        int count) {
    gate->operation_at = operation_at;
    gate->target_at = target_at;
    gate->operation = operation;
    for (int i = 0; i < MOST_TARGETS; i++) gate->targets[i] = i < count ? targets[i] : NULL;
}

void preread_gate_note(struct gate *gate, noter note) { gate->note = note; }

/* From now on, until the gate is armed anew or disarmed, evaluations end behind so many layers. */
void preread_gate_end(struct gate *gate, int layers) { gate->last = layers; }

static void change(struct gate *gate, bool armed, bool cancelled, int open) {
    pthread_mutex_lock(&gate->mutex);
    gate->armed = armed;
    gate->last = 0;
    gate->cancelled = cancelled;
    gate->open = open;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

void preread_gate_arm(struct gate *gate, int open) { change(gate, true, false, open); }
void preread_gate_disarm(struct gate *gate) { change(gate, false, false, 0); }

void preread_gate_open(struct gate *gate, int open) {
    pthread_mutex_lock(&gate->mutex);
    if (open > gate->open) gate->open = open;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

void preread_gate_cancel(struct gate *gate) {
    pthread_mutex_lock(&gate->mutex);
    gate->cancelled = true;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

int preread_gate_waiting(struct gate *gate) {
    pthread_mutex_lock(&gate->mutex);
    int waiting = gate->waiting;
    pthread_mutex_unlock(&gate->mutex);
    return waiting;
}

bool preread_gate_cancelled(struct gate *gate) {
    pthread_mutex_lock(&gate->mutex);
    bool cancelled = gate->cancelled;
    pthread_mutex_unlock(&gate->mutex);
    return cancelled;
}
