// Command kube is a whole single-node Kubernetes in one file: it becomes the component that it is
// called as (through a symbolic link, so that `ps` names it) or that its first argument names. One
// binary shares what the components have in common, so it builds in a third of the time and takes a
// quarter of the disk that the separate ones would.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components hold constructors, not commands: building one registers its flags and metrics
// globally, and only the one that runs may do that.
var components = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-proxy":              proxy.NewProxyCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, known := find(name); !known && len(os.Args) > 1 {
		// The components parse os.Args themselves, and expect their own name in front.
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	run, known := find(name)
	if !known {
		names := append(slices.Sorted(maps.Keys(components)), "etcd")
		fmt.Fprintf(os.Stderr, "kube: %q is not a component; usage: kube %s [flags]\n", name, strings.Join(names, "|"))
		os.Exit(2)
	}
	run()
}

// find returns what runs the named component, and never comes back.
func find(name string) (func(), bool) {
	if name == "etcd" { // parses its own flags, without cobra
		return func() { etcdmain.Main(os.Args) }, true
	}
	command, known := components[name]
	return func() { os.Exit(cli.Run(command())) }, known
}
