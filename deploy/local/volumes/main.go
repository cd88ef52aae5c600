// Command volumes makes a local cluster's PersistentVolumes: each is a folder of the node, offered as a
// `local` volume. The provisioner inside kube-controller-manager makes hostPath volumes instead, for which
// the kubelet ignores fsGroup, with a mode that lets only root write.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// provisionerName is what a StorageClass names.
const provisionerName = "penstock.dev/local-folder"

func main() {
	kubeconfig := flag.String("kubeconfig", "", "the file that says where the cluster is")
	root := flag.String("root", "", "the folder that holds the volumes")
	node := flag.String("node", "", "the name of the node that has this folder")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, folders{root: *root, node: *node}); err != nil {
		fmt.Fprintln(os.Stderr, "volumes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig string, provisioner folders) error {
	if !filepath.IsAbs(provisioner.root) || provisioner.node == "" {
		return errors.New("-root needs an absolute path, and -node a name")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	controller.NewProvisionController(ctx, client, provisionerName, provisioner,
		controller.LeaderElection(false)).Run(ctx)
	return nil
}

// folders makes a volume a folder below root, under the volume's name.
type folders struct{ root, node string }

// Provision may be called again for a volume that it has made.
func (f folders) Provision(_ context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	claim := options.PVC.Spec
	if claim.Selector != nil {
		return nil, controller.ProvisioningFinished, errors.New("a claim with a selector asks for a volume that exists: volumes are only made here")
	}
	path := filepath.Join(f.root, options.PVName)
	if err := makeWritable(path); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	filesystem := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes:                   claim.AccessModes,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Resources.Requests[corev1.ResourceStorage]},
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			VolumeMode:                    &filesystem,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			NodeAffinity:                  f.here(),
		},
	}, controller.ProvisioningFinished, nil
}

// Delete may be called again for a volume whose folder is gone.
func (f folders) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	return os.RemoveAll(filepath.Join(f.root, volume.Name))
}

// makeWritable lets a pod of any user write, as other provisioners of folders do: one that sets fsGroup
// gets it narrowed by the kubelet. MkdirAll would subtract the umask.
func makeWritable(path string) error {
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	return os.Chmod(path, 0o777)
}

// here is required of every `local` volume.
func (f folders) here() *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{
				Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{f.node},
			}},
		}},
	}}
}
