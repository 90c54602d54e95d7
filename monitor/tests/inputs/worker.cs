// A .NET program that does what Runner.Worker does while a job runs: it holds a secret, collects garbage, has threads that
// come and go, and starts children. Does what it is told, a line at a time.
using System;
using System.Diagnostics;
using System.IO;
using System.Threading;

public static class Worker {
    static string secret;
    static long ticks;

    public static int Main(string[] arguments) {
        // Made at run time, so that it is in the heap and nowhere in a file.
        secret = "secret-" + string.Join("-", arguments);
        for (int i = 0; i < 6; i++)
            new Thread(() => { while (true) { var garbage = new byte[100000]; garbage[0] = 1; Interlocked.Increment(ref ticks); Thread.Sleep(5); } }) { IsBackground = true }.Start();
        using (new Timer(_ => { new Thread(() => Interlocked.Increment(ref ticks)).Start(); }, null, 10, 10)) {
            Console.WriteLine("ready");
            string line;
            while ((line = Console.ReadLine()) != null) {
                if (line == "child") Console.WriteLine(Child("grep NoNewPrivs /proc/self/status"));
                else if (line == "collect") { GC.Collect(); GC.WaitForPendingFinalizers(); Console.WriteLine("collected"); }
                else if (line == "processes") Console.WriteLine(Process.GetProcesses().Length > 1);
                else if (line == "ticks") { long before = ticks; Thread.Sleep(300); Console.WriteLine(ticks - before > 20); }
                else if (line == "throw") { try { throw new InvalidOperationException("thrown"); } catch (Exception e) { Console.WriteLine(e.Message); } }
                else if (line == "self") Console.WriteLine(File.ReadAllText("/proc/self/maps").Length > 100 && File.ReadAllText("/proc/self/status").Length > 100);
            }
        }
        GC.KeepAlive(secret);
        return 0;
    }

    static string Child(string script) {
        var start = new ProcessStartInfo("/bin/sh", "-c \"" + script + "\"") { RedirectStandardOutput = true, RedirectStandardError = true, RedirectStandardInput = true, UseShellExecute = false };
        using (var child = Process.Start(start)) {
            child.StandardInput.Close();
            var text = child.StandardOutput.ReadToEnd();
            child.WaitForExit();
            return text.Trim().Replace('\t', ' ');
        }
    }
}
