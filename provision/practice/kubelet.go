package practice

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	manifestDir = "/etc/kubernetes/manifests"
	podPrefix   = "pod-" // of the unit that runs a pod
	// kubeletPoll is the time between two looks at the manifests. A kubelet's is
	// 20 s, but for files that it is told about.
	kubeletPoll = 50 * time.Millisecond
)

// kubelet plays what a kubelet does for static pods, and no more: the first
// container's command of every manifest runs, again when it ends, and is stopped
// when the manifest is gone. Its output is where a kubelet has it. A command
// without a path is in /usr/local/bin, of the image if that was imported, or else
// of the host itself.
type kubelet struct {
	host  *Host
	alone bool // has not reached an API server
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// startKubelet plays until halt is called.
func startKubelet(h *Host) *kubelet {
	ctx, stop := context.WithCancel(context.Background())
	k := &kubelet{host: h, stop: stop, alone: h.faults.get().NoAPIServer}
	k.say("Kubelet version")
	if !k.alone {
		k.say("Successfully registered node")
	}
	k.done.Go(func() {
		running := map[string]string{} // manifest by unit
		tick := time.NewTicker(kubeletPoll)
		defer tick.Stop()
		for ctx.Err() == nil {
			if err := k.sync(ctx, running); err != nil {
				k.say(err.Error())
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	})
	return k
}

func (k *kubelet) say(message string) {
	k.host.units.journals.of("kubelet.service").add("kubelet", 1, message)
}

func (k *kubelet) halt() {
	k.stop()
	k.done.Wait()
}

// sync makes the pods those of the manifests.
func (k *kubelet) sync(ctx context.Context, running map[string]string) error {
	found, err := filepath.Glob(filepath.Join(k.host.Path(manifestDir), "[^.]*.yaml"))
	if err != nil {
		return err
	}
	wanted, failed := map[string]string{}, []error{}
	for _, name := range found {
		text, err := os.ReadFile(name)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		wanted[podPrefix+strings.TrimSuffix(filepath.Base(name), ".yaml")+".service"] = string(text)
	}
	for unit, manifest := range running {
		if wanted[unit] != manifest && !k.alone {
			failed = append(failed, k.host.removePod(ctx, unit))
			delete(running, unit)
		}
	}
	for unit, manifest := range wanted {
		if _, ok := running[unit]; !ok {
			err := k.run(ctx, unit, manifest)
			if errors.Is(err, errNoImage) {
				failed = append(failed, err)
				continue // and try again
			}
			failed = append(failed, err)
			running[unit] = manifest
		}
	}
	return errors.Join(failed...)
}

// removePod stops the unit of a pod and forgets it: its file may change.
func (h *Host) removePod(ctx context.Context, unit string) error {
	err := h.units.stop(ctx, unit)
	h.units.locked(func() { delete(h.units.units, unit) })
	return err
}

// run starts a pod as a transient unit.
func (k *kubelet) run(ctx context.Context, unit, manifest string) error {
	var pod struct {
		Spec struct {
			Containers []struct {
				Name, Image   string
				Command, Args []string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(manifest), &pod); err != nil {
		return err
	}
	if len(pod.Spec.Containers) == 0 || len(pod.Spec.Containers[0].Command) == 0 {
		return fmt.Errorf("%s has no command", unit)
	}
	container := pod.Spec.Containers[0]
	words := append(container.Command, container.Args...)
	root, err := k.host.files.imageRoot(container.Image)
	if err != nil {
		return fmt.Errorf("%s: %w", unit, err)
	}
	if !path.IsAbs(words[0]) {
		words[0] = path.Join("/usr/local/bin", words[0])
	}
	words[0] = path.Join(root, words[0])
	sum := sha256.Sum256([]byte(manifest))
	logs := fmt.Sprintf("/var/log/pods/kube-system_%s-%s_%x/%s", strings.TrimSuffix(strings.TrimPrefix(unit, podPrefix), ".service"), k.host.name, sum[:16], container.Name)
	text := fmt.Sprintf("[Unit]\nDescription=pod %s\nStartLimitIntervalSec=0\n[Service]\nType=simple\nRestart=always\nRestartSec=100ms\nX-PodLogs=%s\nExecStart=%s\n", unit, logs, strings.Join(words, " "))
	if err := k.host.files.put("/run/systemd/system/"+unit, text); err != nil {
		return err
	}
	return k.host.units.start(ctx, unit, false)
}
